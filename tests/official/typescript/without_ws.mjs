// Hides the package `ws`, as if it had never been installed: `node --import ./without_ws.mjs ...`.

import { register } from "node:module";

const hooks = `
export async function resolve(specifier, context, next) {
  if (specifier === "ws") {
    const error = new Error("Cannot find package 'ws': this run has none");
    error.code = "ERR_MODULE_NOT_FOUND";
    throw error;
  }
  return next(specifier, context);
}`;

register(`data:text/javascript,${encodeURIComponent(hooks)}`);
