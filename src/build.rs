//! Links the program at a fixed address on Linux.
//!
//! Each stage has a process of its own, and a program that can be loaded anywhere first has to adjust 100,000 addresses:
//! 1.5 ms a stage, more than all the rest of its start.

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    let target = |key: &str| std::env::var(format!("CARGO_CFG_TARGET_{key}"));
    if target("OS").as_deref() == Ok("linux") && target("ENV").as_deref() == Ok("gnu") {
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
}
