// Counts its runs in `<STATE_DIR>/k.json`; "mode" in its configuration says how it goes on.
const the0 = require("@the0/sdk"); // a copy of its own, under node_modules/

exports.main = async (botId, config) => {
  if (the0.parse().botId !== botId) throw new Error("not the same bot");
  const count = the0.getState("k", { count: 0 }).count + 1;
  the0.setState("k", { count });
  the0.log(`counted ${count}`);
  the0.metric("count", count);
  console.error(`plain words of ${botId}`);
  if (config.mode === "fail") process.exit(3);
  if (config.mode === "wait") {
    console.log("ready");
    await new Promise((done) => setTimeout(done, 60_000));
  }
};
