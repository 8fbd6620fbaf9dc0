/** wasm-build/slots.wasm, base64. The module itself is made by the build (wasm-build/inline.mjs). */
export declare const wasm: string;
