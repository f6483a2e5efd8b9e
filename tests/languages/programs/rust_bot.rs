//! Counts its runs in `<STATE_DIR>/k.json`, written in place; `"mode"` in its configuration says how it goes on.
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, fs, io::Write, process, thread};

fn main() {
    let config = env::var("BOT_CONFIG").expect("BOT_CONFIG");
    let folder = env::var("STATE_DIR").expect("STATE_DIR");
    let file = format!("{folder}/k.json");
    let digits = |text: String| text.chars().filter(char::is_ascii_digit).collect::<String>();
    let count = fs::read_to_string(&file).ok().and_then(|text| digits(text).parse::<u64>().ok()).unwrap_or(0) + 1;
    fs::create_dir_all(&folder).expect("a state folder");
    fs::write(&file, format!("{{\"count\":{count}}}")).expect("state");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_millis();
    println!("{{\"timestamp\":{now},\"level\":\"info\",\"message\":\"counted {count}\"}}");
    eprintln!("plain words of {}", env::var("BOT_ID").expect("BOT_ID"));
    if config.contains("\"mode\":\"fail\"") {
        process::exit(3);
    }
    if config.contains("\"mode\":\"wait\"") {
        println!("ready");
        std::io::stdout().flush().expect("stdout");
        thread::sleep(Duration::from_secs(60));
    }
}
