/// The tile of a matrix product that fits the thirty-two 512-bit registers of this build, in rows and vectors of columns.
let tileRows = 6
let tileVectors = 4
