//! Stage kinds, one file each: a struct of params, typed ports and outputs, and the glue that runs it.

pub mod command;
#[cfg(test)]
mod fixture;
mod groups;
mod measure;
pub mod metric_table;
pub mod plot_curves;
pub mod plot_histograms;
mod scored;
pub mod t_test;
mod training;
