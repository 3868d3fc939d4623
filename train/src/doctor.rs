//! `cab-train doctor`: what this machine and this build offer.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;

/// Prints libtorch's version and path, devices, threads, SIMD level and disk room; exits with 0.
///
/// # Errors
/// Never today; a check that can fail will.
pub fn print() -> Result<ExitCode> {
    println!("cab-train      {}", env!("CARGO_PKG_VERSION"));
    println!("libtorch       {}", cab_kernels::libtorch_version());
    let path =
        loaded_library("libtorch_cpu.so").map_or_else(|| "not found".to_owned(), |path| path.display().to_string());
    println!("libtorch path  {path}");
    let devices = tch::Cuda::device_count();
    let cuda = if devices > 0 { format!("{devices} CUDA devices") } else { "no CUDA device".to_owned() };
    println!("devices        cpu, {cuda}");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!(
        "threads        {cores} cores, libtorch uses {}, rayon {}",
        tch::get_num_threads(),
        rayon::current_num_threads()
    );
    println!("SIMD           {}", cab_kernels::simd_level());
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
    match free_bytes(&here) {
        Some(free) => println!("disk room      {:.1} GB free at {}", free as f64 / 1e9, here.display()),
        None => println!("disk room      unknown at {}", here.display()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Bytes an ordinary user can still write at `path`.
fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

/// The file a loaded shared library was mapped from (Linux).
fn loaded_library(name: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .map(PathBuf::from)
        .find(|path| path.file_name().is_some_and(|file| file == name))
}
