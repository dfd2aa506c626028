//! The tests of this crate in one program, because each program links all of candle. What counts the memory of the process or
//! kills processes is a program of its own.

mod adapt;
mod audit;
mod checkpoint;
mod checkpoint_files;
mod claims;
mod common;
mod data_order;
mod distributed;
mod drop_in;
mod ema;
mod errors;
mod files;
mod left_out;
mod loading;
mod lora;
mod lora_real;
mod models;
#[cfg(feature = "nccl")]
mod nccl;
mod optimizer;
mod optimizer_family;
mod prompts;
mod real_files;
mod resume;
mod schedule;
#[cfg(feature = "search")]
mod search;
mod teacher;
mod telemetry;
mod tpgm;
mod trajectories;
mod weight_space_files;
mod weight_space_live;
mod weight_space_real;
