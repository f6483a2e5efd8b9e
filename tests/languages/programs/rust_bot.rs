//! Counts its runs in `<STATE_DIR>/k.json`; `"mode"` in its configuration says how it goes on. Answers queries where it is the query
//! entrypoint.
use std::io::Write;
use std::time::Duration;
use std::{env, process, thread};

#[path = "old_sdk/the0.rs"]
mod the0;

fn counted() -> u64 {
    let stored = the0::get_state("k").unwrap_or_default();
    stored.chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0)
}

fn answer(path: &str, params: &the0::Params) -> the0::Answer {
    match path {
        "/status" => {
            let pairs: Vec<String> = params.iter().map(|(name, value)| format!("\"{name}\":\"{value}\"")).collect();
            Ok(format!("{{\"count\":{},\"params\":{{{}}},\"note\":\"grün €\"}}", counted(), pairs.join(",")))
        }
        "/write" => {
            the0::set_state("k", "{\"count\":99}");
            Ok("null".into())
        }
        "/boom" => Err("boom".into()),
        _ => Err(format!("No handler for path: {path}")),
    }
}

fn main() {
    if env::var("ENTRYPOINT_TYPE").as_deref() == Ok("query") {
        return the0::run(answer);
    }
    let config = env::var("BOT_CONFIG").expect("BOT_CONFIG");
    let count = counted() + 1;
    the0::set_state("k", &format!("{{\"count\":{count}}}"));
    the0::log(&format!("counted {count}"));
    the0::metric("count", count as f64);
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
