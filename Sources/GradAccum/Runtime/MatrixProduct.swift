import CShims

/// A matrix in memory: element (i, j) is `i * row + j * column` elements from the first, and one of the steps is 1.
struct Matrix {
    let address: UnsafeMutableRawPointer
    let dtype: DType
    let row: Int
    let column: Int

    init(_ address: UnsafeMutableRawPointer, _ dtype: DType, row: Int, column: Int = 1) {
        self.address = address
        self.dtype = dtype
        self.row = row
        self.column = column
    }

    /// Float32, contiguous along its rows.
    init(_ floats: UnsafeMutablePointer<Float>, row: Int) {
        self.init(UnsafeMutableRawPointer(floats), .float32, row: row)
    }

    /// The elements of a contiguous tensor.
    init(_ tensor: Tensor, row: Int) { self.init(tensor.address, tensor.dtype, row: row) }

    var floats: UnsafeMutablePointer<Float> { address.assumingMemoryBound(to: Float.self) }

    var transposed: Matrix { Matrix(address, dtype, row: column, column: row) }

    func at(_ i: Int, _ j: Int) -> Matrix {
        Matrix(address + (i * row + j * column) * dtype.byteCount, dtype, row: row, column: column)
    }

    /// Itself if it is float32, or else its rows converted into `scratch`.
    func asFloats(rows: Int, columns: Int, _ scratch: UnsafeMutablePointer<Float>) -> Matrix {
        guard dtype != .float32 else { return self }
        for i in 0..<rows {
            Runtime.kernels.to_f32(
                scratch + i * columns, at(i, 0).address.assumingMemoryBound(to: UInt16.self), dtype.format,
                Int64(columns))
        }
        return Matrix(scratch, row: columns)
    }

    fileprivate var operand: shims_matrix {
        shims_matrix(address: address, row: Int64(row), column: Int64(column), format: dtype.format)
    }
}

/// A second factor [rows, columns] as products read it: what is multiplied more than once is packed once.
struct PackedMatrix {
    fileprivate let matrix: Matrix
    fileprivate let floats: UnsafeMutablePointer<Float>
    fileprivate let rows: Int

    /// Packs into as many floats as ``floats(rows:columns:_:)`` says.
    init(
        _ matrix: Matrix, rows: Int, columns: Int, _ arithmetic: DType, into floats: UnsafeMutablePointer<Float>
    ) {
        (self.matrix, self.floats, self.rows) = (matrix, floats, rows)
        var operand = matrix.operand
        Runtime.kernels.pack_columns(floats, &operand, Int64(rows), Int64(columns), arithmetic.format)
    }

    static func floats(rows: Int, columns: Int, _ arithmetic: DType) -> Int {
        Int(Runtime.kernels.packed_columns(Int64(rows), Int64(columns), arithmetic.format))
    }
}

/// Cuts an axis into nearly equal blocks, at multiples of 64 where it is longer than that; the last may be half as large.
struct Blocks {
    let count: Int
    private let length: Int
    private let size: Int
    /// Blocks of the size; those after them have half of it.
    private let whole: Int

    init(_ length: Int, largest: Int) {
        self.init(length, count: (length + largest - 1) / largest)
    }

    private init(_ length: Int, count wanted: Int) {
        self.length = length
        let isCut = wanted > 1 && length > 0
        size = isCut ? ((length + wanted - 1) / wanted + 63) & ~63 : max(length, 1)
        count = isCut ? (length + size - 1) / size : 1
        whole = count
    }

    /// Blocks of `size`, a multiple of 128, of which the last `halved`, one at least, are cut in two.
    private init(_ length: Int, size: Int, halved: Int) {
        (self.length, self.size) = (length, size)
        whole = (length + size - 1) / size - halved
        count = whole + (length - whole * size + size / 2 - 1) / (size / 2)
    }

    /// Blocks of at most about `largest`, of which there are `times` each, so that the busiest of some threads has little
    /// more to do than the others.
    static func balanced(_ length: Int, largest: Int, times: Int, threads: Int) -> Blocks {
        let fewest = Blocks(length, largest: largest)
        func span(_ blocks: Blocks) -> Int { (blocks.count * times + threads - 1) / threads * blocks.size }
        var best = fewest
        for more in 1...min(2 * threads, 64) {
            let next = Blocks(length, count: fewest.count + more)
            if Double(span(next)) < 0.98 * Double(span(best)) { best = next }
        }
        return best
    }

    /// Blocks of `size`, a multiple of 128, of which there are `times` each, and halves at the end: at least as many that
    /// each of some threads has one, and so many that what threads do one after another ends at about the same time.
    static func halvedLast(_ length: Int, size: Int, times: Int, threads: Int) -> Blocks {
        guard threads > 1 && length > 64 else { return Blocks(length, largest: size) }
        let blocks = (length + size - 1) / size
        /// Twice the blocks that the busiest thread has, if each takes the next when it is free.
        func span(_ blocks: Blocks) -> Int {
            let (large, small) = (blocks.whole * times, (blocks.count - blocks.whole) * times)
            let rounds = (large + threads - 1) / threads
            let beside = 2 * (rounds * threads - large)
            return 2 * rounds + max(0, small - beside + threads - 1) / threads
        }
        let fewest = min(threads, blocks)
        var best = Blocks(length, size: size, halved: fewest)
        for halved in fewest..<min(2 * threads, blocks) {
            let next = Blocks(length, size: size, halved: halved + 1)
            if span(next) < span(best) { best = next }
        }
        return best
    }

    func start(_ block: Int) -> Int { block * size - max(0, block - whole) * (size / 2) }
    func count(_ block: Int) -> Int { min(block < whole ? size : size / 2, length - start(block)) }
}

/// c [m, n] (+)= a [m, k] b [k, n] (+ bias): a chain of multiply-adds over k per element of c, which is loaded first.
///
/// An element's bits depend on its row of a and its column of b alone: rows may be single samples, and a product over
/// samples may be cut between any two.
struct MatrixProduct {
    let m, n, k: Int
    /// What operands are rounded to before they are multiplied; sums are float32.
    var arithmetic = DType.float32
    /// Where not 0, the product is added to c, which is float32 then.
    var accumulate: Int32 = 0
    var bias: UnsafePointer<Float>?
    /// Whether c is stored past the caches.
    private var streams = false
    /// Floats of a result above which that was measured to be faster: a line that is stored in a cache is fetched first, and
    /// much of the result has left the caches by the time it is read.
    private static let mostCached = 256 * 1024

    init(m: Int, n: Int, k: Int, arithmetic: DType = .float32, accumulate: Int32 = 0, bias: UnsafePointer<Float>? = nil)
    {
        (self.m, self.n, self.k) = (m, n, k)
        (self.arithmetic, self.accumulate, self.bias) = (arithmetic, accumulate, bias)
    }

    /// Runs on all threads.
    func run(_ c: Matrix, _ a: Matrix, _ b: Matrix) throws(GAError) {
        guard m > 0 && n > 0 else { return }
        let (rows, columns) = tiles(a)
        let streams = accumulate == 0 && c.dtype == .float32 && m * n >= MatrixProduct.mostCached
        func part(rows: Int, columns: Int) -> MatrixProduct {
            var part = MatrixProduct(m: rows, n: columns, k: k, arithmetic: arithmetic, accumulate: accumulate)
            part.streams = streams
            return part
        }
        try Runtime.parallel(
            tiles: rows.count * columns.count,
            scratch: part(rows: rows.count(0), columns: columns.count(0)).scratch(for: c.dtype, a)
        ) { tile, scratch in
            let (i, j) = (tile % rows.count, tile / rows.count)
            let (row, column) = (rows.start(i), columns.start(j))
            var part = part(rows: rows.count(i), columns: columns.count(j))
            part.bias = bias.map { $0 + column }
            part.runAlone(c.at(row, column), a.at(row, 0), b.at(0, column), scratch)
        }
    }

    /// Adds `count` products to a sum in bfloat16 [m, n], one after another, each of the next k columns of a and rows of b.
    ///
    /// A tile is so small that its floats stay in the cache between the product and the sum.
    func add(count: Int, to sum: BF16Sum, _ a: Matrix, _ b: Matrix) throws(GAError) {
        guard m > 0 && n > 0 else { return }
        let (rows, columns) = (Blocks(m, largest: 512), Blocks(n, largest: 256))
        func part(rows: Int, columns: Int) -> MatrixProduct {
            MatrixProduct(m: rows, n: columns, k: k, arithmetic: arithmetic)
        }
        let largest = part(rows: rows.count(0), columns: columns.count(0))
        let room = largest.m * largest.n
        try sum.take(turns: count, tiles: rows.count * columns.count, scratch: room + largest.scratch(for: .float32, a))
        {
            tile, floats, counts in
            let (i, j) = (tile % rows.count, tile / rows.count)
            let (row, column) = (rows.start(i), columns.start(j))
            let part = part(rows: rows.count(i), columns: columns.count(j))
            for turn in 0..<count {
                part.runAlone(
                    Matrix(floats, row: part.n), a.at(row, turn * k), b.at(turn * k, column), floats + room)
                for line in 0..<part.m {
                    sum.add(
                        floats + line * part.n, to: (row + line) * n + column, count: part.n, turn: turn, counts)
                }
            }
        }
    }

    /// A tile packs its columns of b once for all of its rows, and its rows of a once for all of its columns, if they are
    /// not words in memory as they are: so a tile is tall or wide.
    private func tiles(_ a: Matrix) -> (rows: Blocks, columns: Blocks) {
        let threads = Runtime.numThreads
        if a.column == 1 && a.dtype == arithmetic && arithmetic != .float16 {
            let rows = Blocks(m, largest: 2048)
            return (rows, .halvedLast(n, size: 128, times: rows.count, threads: threads))
        }
        let columns = Blocks(n, largest: 768)
        return (.balanced(m, largest: 2048, times: columns.count, threads: threads), columns)
    }

    /// Runs on the calling thread, with as much scratch memory as ``scratch(for:_:)`` says.
    func runAlone(_ c: Matrix, _ a: Matrix, _ b: Matrix, _ scratch: UnsafeMutablePointer<Float>) {
        runAlone(c, a, b, packed: nil, packedK: 0, scratch)
    }

    /// The same with the first n columns of what was packed, all or a multiple of 64, and its first k rows, all or a multiple
    /// of 2. It needs no more scratch memory.
    func runAlone(_ c: Matrix, _ a: Matrix, _ b: PackedMatrix, _ scratch: UnsafeMutablePointer<Float>) {
        runAlone(c, a, b.matrix, packed: UnsafePointer(b.floats), packedK: b.rows, scratch)
    }

    private func runAlone(
        _ c: Matrix, _ a: Matrix, _ b: Matrix, packed: UnsafePointer<Float>?, packedK: Int,
        _ scratch: UnsafeMutablePointer<Float>
    ) {
        guard m > 0 && n > 0 else { return }
        var product = shims_product(
            c: c.address, ldc: Int64(c.row), c_format: c.dtype.format, a: a.operand, b: b.operand, bias: bias,
            m: Int64(m), n: Int64(n), k: Int64(k), accumulate: accumulate, streams: streams ? 1 : 0,
            arithmetic: arithmetic.format, packed_b: packed, packed_k: Int64(packedK))
        Runtime.kernels.matrix_product(&product, scratch)
    }

    /// The floats of scratch memory that ``runAlone(_:_:_:_:)`` needs for a result of this type, and for this first factor
    /// or any.
    func scratch(for c: DType = .float32, _ a: Matrix? = nil) -> Int {
        func floats(_ a: UnsafePointer<shims_matrix>?) -> Int {
            Int(Runtime.kernels.matrix_product_scratch(Int64(m), Int64(n), Int64(k), c.format, arithmetic.format, a))
        }
        guard let a else { return floats(nil) }
        return withUnsafePointer(to: a.operand) { floats($0) }
    }
}
