// Counts its runs in `<STATE_DIR>/k.json`, written in place; "mode" in its configuration says how it goes on.
const fs = require("fs");
const path = require("path");
const the0 = require("the0"); // a copy of its own, under node_modules/

exports.main = async (botId, config) => {
  if (the0.parse().botId !== botId) throw new Error("not the same bot");
  const file = path.join(process.env.STATE_DIR, "k.json");
  const count = 1 + (fs.existsSync(file) ? JSON.parse(fs.readFileSync(file)).count : 0);
  fs.mkdirSync(path.dirname(file), { recursive: true });
  fs.writeFileSync(file, JSON.stringify({ count }));
  console.log(JSON.stringify({ timestamp: Date.now(), level: "info", message: `counted ${count}` }));
  console.error(`plain words of ${botId}`);
  if (config.mode === "fail") process.exit(3);
  if (config.mode === "wait") {
    console.log("ready");
    await new Promise((done) => setTimeout(done, 60_000));
  }
};
