/// The tile of a matrix product that fits the sixteen 128-bit registers of this build.
let tileRows = 2
let tileVectors = 1
