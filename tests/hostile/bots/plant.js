// A Node bot that leaves code wherever a `node` of the runtime's might pick some up: the one that answers queries, when it
// is started again, and the next start. What springs tells which process it sprang in.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const { execFileSync } = require("node:child_process");

const STATE = path.dirname(process.env.STATE_DIR);
const WHERE = path.join(STATE, "traps");
const TRAP = (name) => `
const fs = require("node:fs");
fs.writeFileSync(${JSON.stringify(WHERE)} + "/sprung-" + process.pid + "-" + ${JSON.stringify(name)},
  JSON.stringify({name: ${JSON.stringify(name)}, argv: process.argv, options: process.env.NODE_OPTIONS || "",
    execArgv: process.execArgv, env: process.env, environ: fs.readFileSync("/proc/self/environ", "latin1")}));
`;
const BUILTINS = ["fs", "path", "util", "url", "module", "http", "node:fs", "the0", "@the0/sdk", "preload"];

function write(file, text, mode = 0o644) {
  fs.mkdirSync(path.dirname(file), { recursive: true });
  fs.writeFileSync(file, text, { mode });
}

function plant(config) {
  const trap = path.join(process.cwd(), "trap.js");
  write(trap, TRAP("required"));
  const asked = `--require ${trap}`;
  for (const folder of [process.cwd(), process.env.HOME, STATE, config.run_dir, config.logs]) {
    write(`${folder}/.npmrc`, `node-options=${asked}\n`);
    write(`${folder}/.env`, `NODE_OPTIONS=${asked}\n`);
    write(`${folder}/node.config.json`, JSON.stringify({ nodeOptions: { require: [trap], import: [trap] } }));
    write(
      `${folder}/package.json`,
      JSON.stringify({ main: trap, imports: { "#*": trap, fs: trap, "node:fs": trap }, exports: trap, config: { "node-options": asked } }),
    );
    for (const name of BUILTINS) {
      for (const kind of ["node_modules", ".node_modules", ".node_libraries", "lib/node"]) {
        write(`${folder}/${kind}/${name}/index.js`, TRAP(`${kind}-${name.replace(/\W/g, "-")}`));
      }
    }
    write(`${folder}/node`, `#!/bin/sh\nenv > ${WHERE}/program-$$\n`, 0o755);
  }
  process.env.NODE_OPTIONS = asked; // for what it starts itself
}

async function until(condition) {
  for (const deadline = Date.now() + 60_000; Date.now() < deadline; ) {
    if (condition()) return true;
    await new Promise((wait) => setTimeout(wait, 10));
  }
  return false;
}

function queries() {
  try {
    return fs.readdirSync(path.join(process.cwd(), "asked"));
  } catch {
    return []; // none has started yet
  }
}

exports.main = async (_, config) => {
  plant(config);
  const found = { options: process.execArgv };
  execFileSync(process.execPath, ["-e", "1"]); // a child of its own, in which the trap is sprung
  found.asked = await until(() => queries().length > 0);
  for (const pid of queries()) {
    try {
      process.kill(Number(pid), "SIGKILL");
    } catch {
      // of an earlier run
    }
  }
  const killed = queries().length;
  found.again = await until(() => queries().length > killed);
  fs.writeFileSync(path.join(STATE, "findings.json"), JSON.stringify(found));
};
