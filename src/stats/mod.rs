//! Statistics on slices of numbers.
