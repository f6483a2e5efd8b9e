// Counts its runs in `<STATE_DIR>/k.json`; `"mode"` in its configuration says how it goes on. Answers queries where it is the query
// entrypoint.
using System;
using System.Collections.Generic;
using System.Text.Json;
using System.Threading;

static long Counted()
{
    var stored = The0.GetState("k");
    return stored == null ? 0 : JsonDocument.Parse(stored).RootElement.GetProperty("count").GetInt64();
}

static object Answer(string path, IDictionary<string, string> given)
{
    switch (path)
    {
        case "/status":
            return new { count = Counted(), @params = given, note = "grün €" };
        case "/write":
            The0.SetState("k", "{\"count\":99}");
            return "written";
        case "/boom":
            throw new InvalidOperationException("boom");
        default:
            throw new InvalidOperationException($"No handler for path: {path}");
    }
}

if (Environment.GetEnvironmentVariable("ENTRYPOINT_TYPE") == "query")
{
    The0.Run(Answer);
    return 0;
}
var config = JsonDocument.Parse(Environment.GetEnvironmentVariable("BOT_CONFIG")!).RootElement;
var count = Counted() + 1;
The0.SetState("k", JsonSerializer.Serialize(new { count }));
The0.Log($"counted {count}");
The0.Metric("count", count);
Console.Error.WriteLine($"plain words of {Environment.GetEnvironmentVariable("BOT_ID")}");
var mode = config.TryGetProperty("mode", out var told) ? told.GetString() : null;
if (mode == "fail") return 3;
if (mode == "wait")
{
    Console.WriteLine("ready");
    Thread.Sleep(TimeSpan.FromMinutes(1));
}
return 0;
