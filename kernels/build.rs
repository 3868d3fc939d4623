//! Compiles the C++ glue to libtorch's autograd against the libtorch that torch-sys found.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=src/autograd.cpp");
    for name in ["LIBTORCH_INCLUDE", "LIBTORCH_CXX11_ABI"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    // torch-sys is a direct dependency for the sake of this variable: whichever way libtorch was found
    // (LIBTORCH, LIBTORCH_USE_PYTORCH, the system), this is the directory it is linked from.
    let lib = PathBuf::from(env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch lies"));
    // A run path saves users LD_LIBRARY_PATH; it concerns only this crate's own tests and benches.
    if env::var("CARGO_CFG_TARGET_FAMILY").as_deref() == Ok("unix") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    }

    let root = match env::var_os("LIBTORCH_INCLUDE") {
        Some(root) => PathBuf::from(root),
        None => lib.parent().expect("libtorch's lib directory has a parent").to_path_buf(),
    };
    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into());
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .warnings(false)
        // As system headers, so that libtorch's own warnings stay quiet.
        .flag("-isystem")
        .flag(root.join("include").to_str().expect("libtorch's path is UTF-8"))
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        .file("src/autograd.cpp")
        .compile("cab_autograd");
}
