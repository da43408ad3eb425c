"""What tests share: builders, fakes and processes. One definition each."""
