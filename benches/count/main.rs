//! The table of launches and bytes of training steps: see `tpgm_benches::count`.
#![allow(clippy::print_stdout)]

fn main() {
    println!("{}", tpgm_benches::count::table());
}
