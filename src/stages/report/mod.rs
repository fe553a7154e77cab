//! Kinds that tell results: tables, tests, claims and figures, and how they group and measure runs.

pub mod choose;
pub mod claims;
pub mod compare_completions;
pub mod efficiency;
pub mod frontier;
pub mod metric_table;
pub mod normality;
pub mod objective_table;
pub mod plot_curves;
pub mod plot_frontier;
pub mod plot_histograms;
pub mod plot_metric;
pub mod plot_profiles;
pub mod ranking;
pub mod semantic_diversity;
pub mod t_test;
pub mod target_distance;
pub mod win_rate;

mod attempts;
mod axes;
mod axis_value;
mod bootstrap_params;
mod figure_params;
#[cfg(test)]
mod fixture;
mod groups;
mod joined;
mod measure;
mod questions;
mod reach;
mod repeats;
mod resample;
mod scored;
mod trainings;
