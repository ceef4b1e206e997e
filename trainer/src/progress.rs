//! What a person sees while it trains.
