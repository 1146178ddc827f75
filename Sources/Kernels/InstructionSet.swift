/// The tile of a matrix product that fits the sixteen 128-bit registers of this build, in rows and vectors of columns.
let tileRows = 2
let tileVectors = 1
