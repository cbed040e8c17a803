# The responder built with sanitizers, and what they have to report.
#
#   my $sanitizer = RegPilot::Sanitizer->new('address,undefined');
#   my $site = RegPilot::Test->new($sanitizer->options);
#   ...
#   $sanitizer->finish;       # a test: there are no reports
#
# A build is made once and serves all tests of a run.

package RegPilot::Sanitizer;

use strict;
use warnings;

use Cwd qw(getcwd);
use Fcntl qw(LOCK_EX);
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

my $made = 0;

sub new
{
	my ($class, $kind) = @_;
	my $name = $kind =~ tr/,/-/r;
	my $build = "build/$name";

	# tests run side by side
	open my $lock, '>', "fcgi/build/$name.lock" or die "lock: $!";
	flock $lock, LOCK_EX or die "lock: $!";
	system('make', '--silent', '-j2', '-C', 'fcgi', "BUILD=$build", "SANITIZE=$kind") == 0
	  or die 'the responder could not be built';
	my ($test) = $0 =~ m{([^/]+)\.pl$};
	return bless {
		kind => $kind,
		binary => getcwd() . "/fcgi/$build/regpilot-fcgi",
		log => "$PostgreSQL::Test::Utils::log_path/${test}_${name}_" . ++$made,
	}, $class;
}

# What the sanitizers are told: to write their reports to files.
sub environment
{
	my ($self) = @_;
	my $common = "log_path=$self->{log}:exitcode=66";
	return $self->{kind} eq 'thread'
	  ? (TSAN_OPTIONS => $common)
	  : (ASAN_OPTIONS => "$common:detect_stack_use_after_return=1", UBSAN_OPTIONS => "$common:print_stacktrace=1");
}

# options(env => { ... }, ...): those of RegPilot::Test::new, for a site with that responder.
sub options
{
	my ($self, %option) = @_;
	return (%option, binary => $self->{binary}, env => { $self->environment, %{ $option{env} // {} } });
}

# TSan can do nothing where the kernel spreads addresses too far (vm.mmap_rnd_bits above 28).
sub is_usable
{
	my ($self) = @_;
	my $output = '';
	IPC::Run::run([ $self->{binary}, '--version' ], '<', \undef, '>&', \$output);
	return $output !~ /unexpected memory mapping/;
}

sub finish
{
	my ($self) = @_;
	my @reports = glob "$self->{log}.*";
	is(scalar @reports, 0, "nothing to report ($self->{kind})")
	  or diag(map { substr slurp_file($_), 0, 10_000 } @reports);
	return;
}

1;
