// Counts its runs in `<STATE_DIR>/k.json`, written in place; `"mode"` in its configuration says how it goes on.
using System;
using System.IO;
using System.Text.Json;
using System.Threading;

var config = JsonDocument.Parse(Environment.GetEnvironmentVariable("BOT_CONFIG")!).RootElement;
var file = Path.Combine(Environment.GetEnvironmentVariable("STATE_DIR")!, "k.json");
var count = 1L;
if (File.Exists(file))
    count += JsonDocument.Parse(File.ReadAllText(file)).RootElement.GetProperty("count").GetInt64();
Directory.CreateDirectory(Path.GetDirectoryName(file)!);
File.WriteAllText(file, JsonSerializer.Serialize(new { count }));
var timestamp = DateTimeOffset.UtcNow.ToUnixTimeMilliseconds();
Console.WriteLine(JsonSerializer.Serialize(new { timestamp, level = "info", message = $"counted {count}" }));
Console.Error.WriteLine($"plain words of {Environment.GetEnvironmentVariable("BOT_ID")}");
var mode = config.TryGetProperty("mode", out var told) ? told.GetString() : null;
if (mode == "fail") return 3;
if (mode == "wait")
{
    Console.WriteLine("ready");
    Thread.Sleep(TimeSpan.FromMinutes(1));
}
return 0;
