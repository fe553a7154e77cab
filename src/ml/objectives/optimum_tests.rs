//! Every objective, trained to its optimum on an enumerable tree, samples its own target.
