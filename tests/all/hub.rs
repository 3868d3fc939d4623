//! Teachers by hub name: downloaded once from a hub (here a server on the loopback), then found in the local hub cache.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{cab_extract, fail_with, fixtures, succeed};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves the timm fixture as `timm/tiny` for as long as the test lives; returns its address and the count of requests.
fn serve() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    std::thread::spawn(move || {
        for stream in listener.incoming().take(64).flatten() {
            counter.fetch_add(1, Ordering::SeqCst);
            // A client that goes away early is its own affair.
            let _ = answer(stream);
        }
    });
    (address, requests)
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or(Ok(String::new()))?;
    let mut first_byte_only = false;
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        first_byte_only |= line == "range: bytes=0-0";
    }
    let path = request.split_whitespace().nth(1).unwrap_or_default();
    let file = path
        .strip_prefix("/timm/tiny/resolve/main/")
        .and_then(|name| fs::read(fixtures().join("timm").join(name)).ok());
    let Some(bytes) = file else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let body = if first_byte_only { &bytes[..1] } else { &bytes[..] };
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes 0-{}/{}\r\nETag: \"{}\"\r\n\
         x-repo-commit: {COMMIT}\r\nConnection: close\r\n\r\n",
        body.len(),
        body.len() - 1,
        bytes.len(),
        path.rsplit('/').next().unwrap_or_default()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}

#[test]
fn hub_teacher_is_downloaded_once_and_then_found_in_the_cache() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (address, requests) = serve();
    let extract = |out: &str, endpoint: &str, teacher: &str| {
        let arguments = ["--teacher", teacher, "--limit", "3", "--views", "1", "--layers", "all", "--out", out];
        let mut command = cab_extract(folder.path(), &arguments);
        command.env("HF_HOME", folder.path().join("hub")).env("HF_ENDPOINT", endpoint).env_remove("HF_TOKEN");
        command
    };
    succeed(extract("first", &address, "timm/tiny"));
    let downloads = requests.load(Ordering::SeqCst);
    assert!(downloads >= 4, "two files, each asked for and fetched: {downloads} requests");
    // No server listens on port 1: what comes now comes from the cache.
    succeed(extract("second", "http://127.0.0.1:1", "hf-hub:timm/tiny"));
    let digest = |cache: &str| {
        let manifest = fs::read_to_string(folder.path().join(cache).join("manifest.json")).expect("a manifest");
        let manifest: serde_json::Value = serde_json::from_str(&manifest).expect("JSON");
        manifest["plan_digest"].clone()
    };
    assert_eq!(digest("first"), digest("second"));
    let stderr = fail_with(extract("third", "http://127.0.0.1:1", "timm/another"), 1);
    assert!(stderr.contains("timm/another") && stderr.contains("HF_ENDPOINT"), "{stderr}");
}
