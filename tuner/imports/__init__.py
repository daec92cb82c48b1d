"""Result files of other load tools as measurements, each number under the id of its definition."""
