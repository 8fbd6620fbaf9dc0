import { dirtyStormTests } from './dirty-reshaper.js';
import { emulated } from './dirty-subjects.js';

dirtyStormTests(emulated);
