// Counts its runs in `<STATE_DIR>/k.json`; `"mode"` in its configuration says how it goes on.
private def counted: Long =
  The0.getState("k").fold(0L)(_.filter(_.isDigit).toLong)

object BotMain:
  def main(args: Array[String]): Unit =
    val config = sys.env("BOT_CONFIG")
    val count = counted + 1
    The0.setState("k", s"""{"count":$count}""")
    The0.log(s"counted $count")
    The0.metric("count", count.toDouble)
    Console.err.println(s"plain words of ${sys.env("BOT_ID")}")
    if config.contains("\"mode\":\"fail\"") then sys.exit(3)
    if config.contains("\"mode\":\"wait\"") then
      println("ready")
      Thread.sleep(60000)

object OtherMain:
  def main(args: Array[String]): Unit =
    println("the other class")
    BotMain.main(args)

object QueryMain:
  def main(args: Array[String]): Unit = The0.run(answer)

  private def answer(path: String, params: Map[String, String]): String = path match
    case "/status" =>
      val given_ = params.map((name, value) => s"\"$name\":\"$value\"").mkString("{", ",", "}")
      s"""{"count":$counted,"params":$given_,"note":"grün €"}"""
    case "/write" =>
      The0.setState("k", """{"count":99}""")
      "null"
    case "/boom" => throw IllegalStateException("boom")
    case _       => throw IllegalStateException(s"No handler for path: $path")
