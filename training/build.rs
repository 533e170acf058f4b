//! Tells the test binaries where libtorch lies.
//!
//! The extension module needs no such path: Python has loaded torch's own copy before it is imported, and a
//! path of the machine that built the wheel has no place in it.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let extension = std::env::var_os("CARGO_FEATURE_PYTHON").is_some();
    if let (false, Ok(lib)) = (extension, std::env::var("DEP_TCH_LIBTORCH_LIB")) {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
