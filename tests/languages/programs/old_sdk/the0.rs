//! Compiled in: a server that reads once and decodes nothing, params that are all dropped where one is no string.
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs, process};

pub type Params = Vec<(String, String)>;
pub type Answer = Result<String, String>;

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_millis()
}

pub fn log(message: &str) {
    println!("{{\"timestamp\":{},\"level\":\"info\",\"message\":\"{message}\"}}", now());
}

pub fn metric(kind: &str, value: f64) {
    println!("{{\"_metric\":\"{kind}\",\"value\":{value},\"timestamp\":{}}}", now());
}

pub fn get_state(key: &str) -> Option<String> {
    fs::read_to_string(format!("{}/{key}.json", env::var("STATE_DIR").expect("STATE_DIR"))).ok()
}

pub fn set_state(key: &str, value: &str) {
    assert!(env::var("QUERY_PATH").is_err(), "state is read-only in a query");
    let folder = env::var("STATE_DIR").expect("STATE_DIR");
    fs::create_dir_all(&folder).expect("a state folder");
    fs::write(format!("{folder}/{key}.json"), value).expect("state");
}

/// Of a flat object whose values are strings without escapes; nothing of any other.
fn strings(text: &str) -> Option<Params> {
    if text == "{}" {
        return Some(Vec::new());
    }
    let pair = |each: &str| {
        let (name, value) = each.split_once("\":\"")?;
        (!name.contains('"') && !value.contains('"')).then(|| (name.to_string(), value.to_string()))
    };
    text.strip_prefix("{\"")?.strip_suffix("\"}")?.split("\",\"").map(pair).collect()
}

fn told(answer: Answer) -> String {
    match answer {
        Ok(data) => format!("{{\"status\":\"ok\",\"data\":{data}}}"),
        Err(error) => format!("{{\"status\":\"error\",\"error\":\"{error}\"}}"),
    }
}

pub fn run(handle: fn(&str, &Params) -> Answer) {
    if let Ok(path) = env::var("QUERY_PATH") {
        let params = strings(&env::var("QUERY_PARAMS").unwrap_or_default()).unwrap_or_default();
        fs::create_dir_all("/query").expect("/query");
        fs::write("/query/result.json", told(handle(&path, &params))).expect("the result");
        process::exit(0);
    }
    let port = env::var("THE0_QUERY_PORT").unwrap_or_else(|_| "9476".into());
    let listener = TcpListener::bind(format!("0.0.0.0:{port}")).expect("a port");
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let mut once = [0; 4096];
        let count = stream.read(&mut once).unwrap_or(0);
        let head = String::from_utf8_lossy(&once[..count]).into_owned();
        let target = head.split(' ').nth(1).unwrap_or("/");
        let (path, queries) = target.split_once('?').unwrap_or((target, ""));
        let pair = |each: &str| each.split_once('=').map(|(name, value)| (name.to_string(), value.to_string()));
        let body = told(handle(path, &queries.split('&').filter_map(pair).collect()));
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    }
}
