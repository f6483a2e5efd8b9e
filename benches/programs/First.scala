object First:
  def main(args: Array[String]): Unit =
    val now = System.nanoTime // CLOCK_MONOTONIC
    println(s"first $now")
