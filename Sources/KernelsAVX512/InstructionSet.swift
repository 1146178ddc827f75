/// The tile of a matrix product that fits the thirty-two 512-bit registers of this build, in rows and vectors of columns.
let tileRows = 8
let tileVectors = 2

/// The vectors of columns at a time of a product that has a single row.
let rowVectors = 8
