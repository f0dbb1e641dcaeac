//! One upstream for each live attempt, many followers.
