// Counts its runs in `<STATE_DIR>/k.json`, written in place; `"mode"` in its configuration says how it goes on.
import java.nio.file.{Files, Path}

object BotMain:
  def main(args: Array[String]): Unit =
    val config = sys.env("BOT_CONFIG")
    val file = Path.of(sys.env("STATE_DIR"), "k.json")
    val stored = if Files.exists(file) then Files.readString(file).filter(_.isDigit) else ""
    val count = stored.toLongOption.getOrElse(0L) + 1
    Files.createDirectories(file.getParent)
    Files.writeString(file, s"""{"count":$count}""")
    println(s"""{"timestamp":${System.currentTimeMillis},"level":"info","message":"counted $count"}""")
    Console.err.println(s"plain words of ${sys.env("BOT_ID")}")
    if config.contains("\"mode\":\"fail\"") then sys.exit(3)
    if config.contains("\"mode\":\"wait\"") then
      println("ready")
      Thread.sleep(60000)

object OtherMain:
  def main(args: Array[String]): Unit =
    println("the other class")
    BotMain.main(args)
