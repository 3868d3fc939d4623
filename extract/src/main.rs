//! `cab-extract`: runs a Transformer teacher once over a data set and writes its queries and keys into a cache.

use std::process::ExitCode;

fn main() -> ExitCode {
    cab_extract::main()
}
