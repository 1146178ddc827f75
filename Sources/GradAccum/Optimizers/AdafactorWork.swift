/// The parameters of an update of Adafactor as matrices, cut into blocks of rows and columns, with memory for the sums over
/// such blocks.
struct AdafactorWork {
    /// Elements of a block, and of what one thread does at a time.
    private static let blockSize = 65536

    /// A parameter as matrices of its last two axes; one with fewer axes is one row.
    private struct Layout {
        let isFactored: Bool
        let matrices: Int
        let rows: Int
        let columns: Int
        let rowsPerBlock: Int
        let columnsPerBlock: Int

        init(_ shape: [Int]) {
            let count = shape.reduce(1, *)
            isFactored = shape.count > 1
            rows = isFactored ? shape[shape.count - 2] : 1
            columns = isFactored ? shape[shape.count - 1] : count
            matrices = count == 0 ? 0 : count / (rows * columns)
            // Whole rows, unless they are long: memory is best read in its order.
            columnsPerBlock = max(1, min(columns, max(1024, blockSize / max(rows, 1))))
            rowsPerBlock = max(1, min(rows, blockSize / columnsPerBlock))
        }

        var rowBlocks: Int { (rows + rowsPerBlock - 1) / rowsPerBlock }
        var columnBlocks: Int { (columns + columnsPerBlock - 1) / columnsPerBlock }
        /// Small matrices go together.
        var matricesPerTile: Int { max(1, blockSize / max(rows * columns, 1)) }
        /// Sums of rows per block of columns, sums of columns per block of rows, and the scale.
        var numbersPerMatrix: Int { columnBlocks * rows + rowBlocks * columns + 1 }
        var numbers: Int { matrices * numbersPerMatrix }
    }

    /// A matrix of a parameter: its second moments, and sums that become factors.
    struct Matrix {
        let rows: Int
        let columns: Int
        let rowBlocks: Int
        let columnBlocks: Int
        let values: UnsafeMutablePointer<Float>
        let gradient: UnsafePointer<Float>
        /// nil for a parameter with less than two axes.
        let rowVariance: UnsafeMutablePointer<Float>?
        let columnVariance: UnsafeMutablePointer<Float>
        /// [columnBlocks, rows], and [rows] once they are added up.
        let rowSums: UnsafeMutablePointer<Float>
        /// [rowBlocks, columns], and [columns] once they are added up.
        let columnSums: UnsafeMutablePointer<Float>
        /// Of all row factors.
        let scale: UnsafeMutablePointer<Float>
    }

    /// Some rows and columns of a matrix.
    struct Block {
        /// The place of its parameter in the update.
        let parameter: Int
        let matrix: Matrix
        let rowBlock: Int
        let columnBlock: Int
        let firstRow: Int
        let firstColumn: Int
        let rows: Int
        let columns: Int

        var start: Int { firstRow * matrix.columns + firstColumn }
    }

    /// A block of each of some matrices.
    private struct Tile {
        let parameter: Int
        let matrices: Range<Int>
        let rowBlock: Int
        let columnBlock: Int
    }

    private let parameters: [Update.Parameter]
    private let layouts: [Layout]
    /// Per parameter, where its part of the memory starts.
    private var starts: [Int] = []
    private var tiles: [Tile] = []
    private let memory: UnsafeMutablePointer<Float>

    /// The numbers of memory that parameters of these shapes need.
    static func size(shapes: [[Int]]) -> Int { shapes.map { Layout($0).numbers }.reduce(0, +) }

    init(_ update: Update) {
        parameters = update.parameters
        memory = update.workspace.baseAddress!
        layouts = parameters.map { Layout($0.shape) }
        var size = 0
        for (index, layout) in layouts.enumerated() {
            starts.append(size)
            size += layout.numbers
            for first in stride(from: 0, to: layout.matrices, by: layout.matricesPerTile) {
                let matrices = first..<min(first + layout.matricesPerTile, layout.matrices)
                for row in 0..<layout.rowBlocks {
                    for column in 0..<layout.columnBlocks {
                        tiles.append(Tile(parameter: index, matrices: matrices, rowBlock: row, columnBlock: column))
                    }
                }
            }
        }
    }

    private func matrix(_ number: Int, of index: Int) -> Matrix {
        let (parameter, layout) = (parameters[index], layouts[index])
        let start = number * layout.rows * layout.columns
        let rowSums = memory + starts[index] + number * layout.numbersPerMatrix
        let columnSums = rowSums + layout.columnBlocks * layout.rows
        return Matrix(
            rows: layout.rows, columns: layout.columns, rowBlocks: layout.rowBlocks, columnBlocks: layout.columnBlocks,
            values: parameter.values + start, gradient: parameter.gradient + start,
            rowVariance: layout.isFactored ? parameter.floats(0) + number * layout.rows : nil,
            columnVariance: parameter.floats(layout.isFactored ? 1 : 0) + number * layout.columns, rowSums: rowSums,
            columnSums: columnSums, scale: columnSums + layout.rowBlocks * layout.columns)
    }

    /// Runs `body` for all blocks, on all threads.
    func forEachBlock(_ body: (Block) -> Void) throws(GAError) {
        try Runtime.parallel(tiles: tiles.count) { tile in forEachBlock(of: tiles[tile], body) }
    }

    /// Per parameter, the sum of what `body` returns for its blocks, which runs on all threads.
    func sums(_ body: (Block) -> Double) throws(GAError) -> [Double] {
        let terms = try collect(tiles.count) { tile in
            var sum = 0.0
            forEachBlock(of: tiles[tile]) { sum += body($0) }
            return [sum, 0]
        }
        var sums = [Double](repeating: 0, count: parameters.count)
        for (tile, term) in zip(tiles, terms) { sums[tile.parameter] += term[0] }
        return sums
    }

    /// Runs `body` for all matrices, on all threads.
    func forEachMatrix(_ body: (Matrix) -> Void) throws(GAError) {
        let first = tiles.filter { $0.rowBlock == 0 && $0.columnBlock == 0 }
        try Runtime.parallel(tiles: first.count) { tile in
            for number in first[tile].matrices { body(matrix(number, of: first[tile].parameter)) }
        }
    }

    private func forEachBlock(of tile: Tile, _ body: (Block) -> Void) {
        let layout = layouts[tile.parameter]
        let row = tile.rowBlock * layout.rowsPerBlock
        let column = tile.columnBlock * layout.columnsPerBlock
        for number in tile.matrices {
            body(
                Block(
                    parameter: tile.parameter, matrix: matrix(number, of: tile.parameter), rowBlock: tile.rowBlock,
                    columnBlock: tile.columnBlock, firstRow: row, firstColumn: column,
                    rows: min(layout.rowsPerBlock, layout.rows - row),
                    columns: min(layout.columnsPerBlock, layout.columns - column)))
        }
    }
}
