//! The programs are no libraries, so the modules of the one that this package has the name of are put together again here, by the list in
//! its main.rs. Nothing of them is copied or changed.

use std::path::Path;
use std::{env, fs};

fn main() {
    let manifest = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let package = Path::new(&manifest).file_name().expect("a folder").to_owned();
    let source = Path::new(&manifest).join("../..").join(package).join("src");
    let main = fs::read_to_string(source.join("main.rs")).expect("the program's main.rs");
    let names = main.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
    let modules: String = names
        .map(|name| {
            let file = source.join(format!("{name}.rs"));
            let file = if file.exists() { file } else { source.join(name).join("mod.rs") };
            format!("#[path = {:?}]\nmod {name};\n", file.canonicalize().expect("the module's file"))
        })
        .collect();
    let out = Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("modules.rs");
    fs::write(out, modules).expect("the list can be written");
    println!("cargo::rerun-if-changed={}", source.join("main.rs").display());
    println!("cargo::rerun-if-changed=../modules.rs");
}
