using System;
using System.Diagnostics;

var now = Stopwatch.GetTimestamp(); // CLOCK_MONOTONIC, in nanoseconds
Console.WriteLine($"first {now}");
