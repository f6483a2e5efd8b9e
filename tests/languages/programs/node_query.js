const the0 = require("@the0/sdk"); // a copy of its own, under node_modules/

the0.handler("/status", (params) => ({ count: the0.getState("k").count, params, note: "grün €" }));
the0.handler("/write", () => the0.setState("k", { count: 99 }));
the0.handler("/boom", () => {
  throw new Error("boom");
});
the0.run();
