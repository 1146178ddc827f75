/// The tile of a matrix product that fits the sixteen 256-bit registers of this build.
let tileRows = 6
let tileVectors = 1
