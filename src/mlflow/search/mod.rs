//! MLflow's language of filters and orders: text in, typed comparisons out.
//!
//! The grammar, the operators that each kind of field has and the rules for quotes are those of MLflow's
//! `utils/search_utils.py`; what the stock client refuses is refused here with the part that is wrong. What can be
//! searched for says, as a [`Searched`], which fields it has: runs, model versions and registered models.

pub mod grammar;
pub mod models;
pub mod runs;
