/// What has gone into a window so far.
struct Window {
    /// Micro-batches after which a step is due; set when the first one begins.
    var accumulationSteps: Int?
    /// Those that count.
    var microBatches = 0
    /// Those that were aborted or dropped.
    var aborted = 0
    var weight = 0.0
    var loss = 0.0
    /// The one that was begun and neither committed nor aborted.
    var microBatch: MicroBatch?
    /// The numbers of micro-batches whose weight is still to come.
    var withoutWeight: [Int] = []
    var firstNonFinite: WindowReport.NonFinite?
    /// What losses are multiplied by, from the first one on.
    var lossScale: Double?
    /// Gradients from outside were added.
    var hasGiven = false
    /// Where the gradients of a micro-batch first overflowed, which was dropped in isolated mode.
    var overflow: WindowReport.NonFinite?
    /// The sums, once they have been read: nothing more can be added.
    var folded: FoldedSums?
    /// How often it was computed again.
    var retries = 0
    /// An addition failed half-way, so the sums are no longer those of whole micro-batches.
    var isBroken = false
    /// The data ended, and what there is goes on into the next.
    var isCarried = false
    var forwardBackwardSeconds = 0.0

    /// Of the micro-batch that is open, or of the next one.
    var nextNumber: Int { microBatches + aborted }

    /// Nothing was begun since the last step.
    var isEmpty: Bool { microBatches == 0 && aborted == 0 && microBatch == nil }

    /// Counts a micro-batch whose gradients are in the window.
    mutating func count(_ microBatch: MicroBatch) {
        if microBatch.isWeightToCome {
            withoutWeight.append(microBatch.number)
        }
        weight += microBatch.weight
        loss += microBatch.loss
        microBatches += 1
    }
}

/// What the one reading pass over the sums of a window came to.
struct FoldedSums {
    /// Per parameter, whether something was added and it is trained.
    let isIncluded: [Bool]
    /// Nil for a parameter that is not included, and for sums in bfloat16, which nothing holds in one place.
    let totals: [Tensor?]
    /// Those of the sums, which are scaled.
    let squares: [Double]

    var isFinite: Bool { squares.reduce(0, +).isFinite }
}

/// A micro-batch until it is committed.
struct MicroBatch {
    let number: Int
    /// When it began.
    let start: UInt64
    /// Losses, or sets of gradients, that it is made of.
    var additions = 0
    /// Gradients of single parameters, whose loss and weight are to come with an addition.
    var hasGradients = false
    var weight = 0.0
    /// Its weight is given later.
    var isWeightToCome = false
    /// It was, and is now what all of the gradients are multiplied by.
    var isWeightGivenLater = false
    /// As a sum, where the weight is known or losses are sums.
    var loss = 0.0
    /// What the gradients are multiplied by when they are added to the window.
    var scale: Float = 1
    /// A loss that is not finite: nothing of it is to be added.
    var nonFinite: WindowReport.NonFinite?
    /// An addition failed half-way.
    var isBroken = false
}
