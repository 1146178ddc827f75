/// The tile of a matrix product that fits the thirty-two 512-bit registers of this build.
let tileRows = 8
let tileVectors = 2
