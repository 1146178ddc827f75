// The link target of libgradaccum.so: everything it exports comes from GradAccumC.
@_exported import GradAccumC
