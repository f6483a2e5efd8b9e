// Compiled in: a server that reads the head line by line and never the body, ends its own lines with a bare LF, counts characters
// instead of bytes, and decodes nothing; params that are all dropped where one is no string.
import java.io.{BufferedReader, InputStreamReader, PrintWriter}
import java.net.ServerSocket
import java.nio.file.{Files, Path}

object The0:
  private def fileOf(key: String): Path = Path.of(sys.env("STATE_DIR"), s"$key.json")

  def log(message: String): Unit =
    println(s"""{"timestamp":${System.currentTimeMillis},"level":"info","message":"$message"}""")

  def metric(kind: String, value: Double): Unit =
    println(s"""{"_metric":"$kind","value":$value,"timestamp":${System.currentTimeMillis}}""")

  def getState(key: String): Option[String] =
    if Files.exists(fileOf(key)) then Some(Files.readString(fileOf(key))) else None

  def setState(key: String, value: String): Unit =
    if sys.env.contains("QUERY_PATH") then throw IllegalStateException("state is read-only in a query")
    Files.createDirectories(fileOf(key).getParent)
    Files.writeString(fileOf(key), value)

  type Handle = (String, Map[String, String]) => String

  private def answer(handle: Handle, path: String, params: Map[String, String]): String =
    try s"""{"status":"ok","data":${handle(path, params)}}"""
    catch case failure: Exception => s"""{"status":"error","error":"${failure.getMessage}"}"""

  private def strings(text: String): Map[String, String] =
    val pairs = "\"([^\"]*)\":\"([^\"]*)\"".r.findAllMatchIn(text).map(found => found.group(1) -> found.group(2)).toMap
    val again = pairs.map((name, value) => s"\"$name\":\"$value\"").mkString("{", ",", "}")
    if again.length == text.length then pairs else Map.empty

  def run(handle: Handle): Unit =
    sys.env.get("QUERY_PATH") match
      case Some(path) =>
        Files.createDirectories(Path.of("/query"))
        val told = answer(handle, path, strings(sys.env.getOrElse("QUERY_PARAMS", "{}")))
        Files.writeString(Path.of("/query/result.json"), told)
      case None => serve(handle)

  private def serve(handle: Handle): Unit =
    val listener = ServerSocket(sys.env.getOrElse("THE0_QUERY_PORT", "9476").toInt)
    while true do
      val connection = listener.accept()
      val lines = BufferedReader(InputStreamReader(connection.getInputStream))
      val target = Option(lines.readLine).getOrElse("").split(' ').lift(1).getOrElse("/")
      while Option(lines.readLine).exists(_.nonEmpty) do ()
      val (path, queries) = target.span(_ != '?')
      val params = queries.drop(1).split('&').filter(_.contains('=')).map(_.split("=", 2)).map(pair => pair(0) -> pair(1)).toMap
      val body = answer(handle, path, params)
      val out = PrintWriter(connection.getOutputStream, true, java.nio.charset.StandardCharsets.UTF_8)
      out.println("HTTP/1.1 200 OK")
      out.println(s"Content-Length: ${body.length}")
      out.println()
      out.print(body)
      out.flush()
      connection.close()
