/// The axes along which two arrangements of the same elements are walked together.
///
/// Axes of one element are left out, and neighbours that lie alike on both sides are joined, so that the last axis is as
/// long as it can be.
struct PairedAxes {
    private struct Axis {
        var size: Int
        var stepA: Int
        var stepB: Int

        /// Takes the axis around this one in, if the two can be walked as one.
        mutating func join(_ around: Axis) -> Bool {
            guard around.stepA == stepA * size && around.stepB == stepB * size else { return false }
            size *= around.size
            return true
        }
    }

    private var row: Axis
    /// The axes around the last one, from the innermost: mostly none.
    private var around: [Axis] = []

    init(_ shape: [Int], _ a: [Int], _ b: [Int]) {
        var row: Axis?
        for axis in shape.indices.reversed() where shape[axis] != 1 {
            // Where both stand still, every element is the same one: once is enough.
            if shape[axis] > 1 && a[axis] == 0 && b[axis] == 0 { continue }
            let next = Axis(size: shape[axis], stepA: a[axis], stepB: b[axis])
            if row == nil {
                row = next
            } else if around.isEmpty ? !row!.join(next) : !around[around.count - 1].join(next) {
                around.append(next)
            }
        }
        self.row = row ?? Axis(size: 1, stepA: 1, stepB: 1)
    }

    /// Elements that are neighbours on both sides.
    init(neighbours count: Int) { row = Axis(size: count, stepA: 1, stepB: 1) }

    /// The last axis: its length, and the steps of the two sides along it.
    var rowSize: Int { row.size }
    var rowStepA: Int { row.stepA }
    var rowStepB: Int { row.stepB }
    var rowCount: Int { around.reduce(1) { $0 * $1.size } }

    /// Where a row starts on the two sides.
    func offsets(ofRow number: Int) -> (a: Int, b: Int) {
        var (rest, a, b) = (number, 0, 0)
        for axis in around {
            let index = rest % axis.size
            rest /= axis.size
            a += index * axis.stepA
            b += index * axis.stepB
        }
        return (a, b)
    }
}
