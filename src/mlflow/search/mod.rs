//! MLflow's language of filters and orders: text in, typed comparisons out.
//!
//! The grammar, the operators of each kind of field and the rules for quotes are those of MLflow's
//! `utils/search_utils.py`; a text that the stock client refuses is refused here, with the part that is wrong. Runs,
//! model versions and registered models implement [`Searched`], which defines their fields.

pub(crate) mod grammar;
pub(crate) mod models;
pub(crate) mod runs;
