//! The engine and its command line, driven as a user drives them: pipeline files, the program, its exit codes and
//! what it prints. Stages are commands, so no test trains anything.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod arithmetic;
mod audit;
mod browser;
mod cache;
mod check_errors;
mod choices;
mod cli;
mod collection;
mod command_environment;
mod command_kind;
mod command_paths;
mod command_processes;
mod concurrency;
mod devices;
mod disk;
mod disks;
mod evaluation;
mod failure;
mod faults;
mod golden;
mod golden_flowhf;
mod golden_outputs;
mod history;
mod import;
mod kill;
mod known_limits;
mod large_data;
mod lengthen;
mod limits;
mod long_messages;
mod matrix;
mod models;
mod numerics;
mod own_samples;
mod pages;
mod plan;
mod power_loss;
mod random_kills;
mod readme;
mod report;
mod report_files;
mod results;
mod reward_programs;
mod secrets;
mod shipped;
mod signals;
mod space;
mod store_damage;
mod terminal;
mod texts;
mod tiny;
mod training;
mod typed_outputs;
