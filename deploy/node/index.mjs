// The package for `import`. The code is loaded once, as CommonJS, so that a program which mixes `import` and `require`
// has one class of each kind: `error instanceof PortleaseError` is true for both.
import portlease from "./index.cjs";

export const { Portlease, HeldLease, PortleaseError, SpawnedWorker, canBind, pluginVariable } = portlease;
