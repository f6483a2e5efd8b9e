// What answers the planting bot's queries: with what it was started by, and what it loaded.
"use strict";

const fs = require("fs");
const path = require("path");

const here = path.join(process.cwd(), "asked"); // the state is not for queries to write
fs.mkdirSync(here, { recursive: true });
fs.writeFileSync(path.join(here, String(process.pid)), "");
require("http")
  .createServer((asked, answer) => {
    const data = { options: process.env.NODE_OPTIONS ?? "", argv: process.argv, execArgv: process.execArgv };
    answer.end(JSON.stringify({ status: "ok", data }));
  })
  .listen(Number(process.env.THE0_QUERY_PORT), "127.0.0.1");
