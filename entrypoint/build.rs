//! How the static program is laid out in memory: fewer pages to touch at every start, and fewer bytes to carry.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[expect(clippy::disallowed_methods, reason = "cargo tells a build script its target this way")]
    let environment = std::env::var("CARGO_CFG_TARGET_ENV");
    if environment.as_deref() == Ok("musl") {
        for argument in ["-z,pack-relative-relocs", "-z,noseparate-code", "--build-id=none"] {
            println!("cargo::rustc-link-arg-bins=-Wl,{argument}");
        }
    }
}
