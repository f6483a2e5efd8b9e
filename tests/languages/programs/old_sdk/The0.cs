// Compiled in: a listener that wants a Host it knows and takes one request at a time, and params that are all dropped where one is
// no string.
using System;
using System.Collections.Generic;
using System.IO;
using System.Net;
using System.Text;
using System.Text.Json;

public static class The0
{
    static long Now => DateTimeOffset.UtcNow.ToUnixTimeMilliseconds();
    static string FileOf(string key) => Path.Combine(Environment.GetEnvironmentVariable("STATE_DIR")!, $"{key}.json");

    public static void Log(string message) =>
        Console.WriteLine(JsonSerializer.Serialize(new { timestamp = Now, level = "info", message }));

    public static void Metric(string kind, double value) =>
        Console.WriteLine(JsonSerializer.Serialize(new { _metric = kind, value, timestamp = Now }));

    public static string? GetState(string key) => File.Exists(FileOf(key)) ? File.ReadAllText(FileOf(key)) : null;

    public static void SetState(string key, string value)
    {
        if (Environment.GetEnvironmentVariable("QUERY_PATH") != null)
            throw new InvalidOperationException("state is read-only in a query");
        Directory.CreateDirectory(Path.GetDirectoryName(FileOf(key))!);
        File.WriteAllText(FileOf(key), value);
    }

    static string Answer(Func<string, IDictionary<string, string>, object> handle, string path, IDictionary<string, string> given)
    {
        try
        {
            return JsonSerializer.Serialize(new { status = "ok", data = handle(path, given) });
        }
        catch (Exception failure)
        {
            return JsonSerializer.Serialize(new { status = "error", error = failure.Message });
        }
    }

    static IDictionary<string, string> Strings(string text)
    {
        try
        {
            return JsonSerializer.Deserialize<Dictionary<string, string>>(text)!;
        }
        catch (JsonException)
        {
            return new Dictionary<string, string>();
        }
    }

    public static void Run(Func<string, IDictionary<string, string>, object> handle)
    {
        var asked = Environment.GetEnvironmentVariable("QUERY_PATH");
        if (asked != null)
        {
            var given = Strings(Environment.GetEnvironmentVariable("QUERY_PARAMS") ?? "{}");
            Directory.CreateDirectory("/query");
            File.WriteAllText("/query/result.json", Answer(handle, asked, given));
            return;
        }
        var listener = new HttpListener();
        listener.Prefixes.Add($"http://*:{Environment.GetEnvironmentVariable("THE0_QUERY_PORT") ?? "9476"}/");
        listener.Start();
        while (true)
        {
            var context = listener.GetContext();
            var given = new Dictionary<string, string>();
            foreach (string? name in context.Request.QueryString)
                if (name != null) given[name] = context.Request.QueryString[name] ?? "";
            var body = Encoding.UTF8.GetBytes(Answer(handle, context.Request.Url!.AbsolutePath, given));
            context.Response.OutputStream.Write(body);
            context.Response.Close();
        }
    }
}
