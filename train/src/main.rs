//! `cab-train`: trains a Mamba student from a cache of a Transformer teacher's queries and keys.

use std::process::ExitCode;

fn main() -> ExitCode {
    cab_train::main()
}
