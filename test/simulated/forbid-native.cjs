// Loaded before everything else: no koffi, no native library at all, and no other program.
const childProcess = require('node:child_process');
const module_ = require('node:module');

const resolveFilename = module_._resolveFilename;
module_._resolveFilename = function (request, ...rest) {
  if (/(^|\/)@?koffi/.test(request) || /@koromix\//.test(request)) throw new Error(`forbidden: ${request}`);
  return resolveFilename.call(this, request, ...rest);
};
process.dlopen = () => {
  throw new Error('forbidden: a native library');
};
for (const name of ['spawn', 'spawnSync', 'exec', 'execSync', 'execFile', 'execFileSync']) {
  childProcess[name] = () => {
    throw new Error('forbidden: another program');
  };
}
module_.syncBuiltinESMExports();
