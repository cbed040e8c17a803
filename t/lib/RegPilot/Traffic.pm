# Clients of all kinds that keep calling while something breaks, and know what each
# of their answers may be.
#
#   my $traffic = RegPilot::Traffic->new($site, may => { 'cut streams' => 1 });
#   $traffic->start;
#   $traffic->during('what breaks', sub { ... });    # then all must be well again, soon
#   my $seen = $traffic->stop;    # what they got, how often
#   is($seen->{wrong}, ..., );
#
# At any time: a good key gets the whole of its answer, or a 503 that is documented, in
# both cases before long; others are refused as they should be, or get that 503. While
# nothing is broken there is no 503 either.

package RegPilot::Traffic;

use strict;
use warnings;

use HTTP::Tiny;
use JSON::PP ();
use POSIX ();
use PostgreSQL::Test::Utils qw(append_to_file);
use RegPilot::Test;
use Test::More;
use Time::HiRes qw(sleep time);

# Seconds that an answer may take that is not a stream: the database's timeout is 1.5 s.
my $patience = 10;
# Seconds after which all is well again.
my $recovery = 20;
my $json = JSON::PP->new->utf8->canonical;

# The bodies that a 503 may have, by its code.
my %unavailable = (
	DATABASE_UNAVAILABLE => '{"error":"API keys cannot be checked at the moment","code":"DATABASE_UNAVAILABLE"}',
	GATEWAY_UNAVAILABLE => '{"error":"The gateway is out of reach","code":"GATEWAY_UNAVAILABLE"}',
	TOO_MANY_STREAMS => '{"error":"Too many answers are being relayed at the moment","code":"TOO_MANY_STREAMS"}',
);

# new(site, codes => [ those of 503s that there may be ], cuts => whether streams may be cut,
#     model =>, stream_model => names that are routed); these only while something is broken
sub new
{
	my ($class, $site, %option) = @_;
	my $self = bless {
		site => $site,
		codes => { map { $_ => 1 } @{ $option{codes} // ['DATABASE_UNAVAILABLE'] } },
		cuts => $option{cuts},
		model => $option{model},
		stream_model => $option{stream_model},
		file => "$site->{dir}/traffic" . ++$site->{traffics},
		readers => [],
	}, $class;
	append_to_file($self->{file}, '');
	($self->{good_id}, $self->{good}) = $site->create_key;
	(my $revoked_id, $self->{revoked}) = $site->create_key;
	$site->sql("SELECT regpilot.revoke_key('$revoked_id')");
	($self->{doomed_id}, $self->{doomed}) = $site->create_key;
	return $self;
}

# Each turn of something breaking makes a file longer, and its end another time.
sub turns { return -s $_[0]{file} || 0 }

# One call; gives its status, after adding to what is seen.
sub call
{
	my ($self, $http, $kind, $seen) = @_;
	my $before = $self->turns;
	my $doomed = -e "$self->{file}-doomed";
	my $start = time;
	my $streams = $kind =~ /stream/;
	my $url = $self->{site}->url;
	my $key = $kind =~ /^(revoked|doomed)$/ ? $self->{$kind} : $kind eq 'unknown' ? "sk_$$" : $self->{good};
	my %headers = ('X-API-Key' => $key);
	my $answer;

	if ($kind =~ /chat|stream/)
	{
		my $model = $kind eq 'long stream' ? $self->{stream_model} : $self->{model};
		my $body = $json->encode(user_message(model => $model, stream => $streams ? JSON::PP::true : JSON::PP::false));
		$headers{'Content-Type'} = 'application/json';
		$answer = $http->post("$url/api/ai/chat", { headers => \%headers, content => $body });
	}
	else
	{
		$answer = $http->get("$url/api/auth/verify", { headers => \%headers });
	}

	my $calm = $before == $self->turns && $before % 2 == 0;
	my ($status, $body) = @$answer{qw(status content)};
	my $code = $status == 503 && $body =~ /"code":"(\w+)"/ ? $1 : '';
	my $wrong;
	if ($status == 503)
	{
		$wrong = "503 with $body" if $body ne ($unavailable{$code} // '');
		$wrong = "503 with $code" unless $self->{codes}{$code};
		$wrong = '503 without Retry-After' unless ($answer->{headers}{'retry-after'} // '') =~ /^[1-9]\d*$/;
		$wrong = '503 while all is well' if $calm;
	}
	elsif ($kind eq 'revoked' || $kind eq 'doomed' && $status != 200)
	{
		$wrong = "$status $body" unless $status == 401 && $body eq $body{revoked};
	}
	elsif ($kind eq 'doomed')
	{
		$wrong = 'a key revoked before passes' if $doomed;
	}
	elsif ($kind eq 'unknown')
	{
		$wrong = "$status $body" unless $status == 401 && $body eq $body{invalid};
	}
	elsif ($status != 200)
	{
		$wrong = "$status $body";
	}
	elsif ($streams && $body !~ /data: \[DONE\]\n\n\z/)
	{
		$wrong = "a stream that ends in " . substr $body, -100 unless $self->{cuts} && !$calm;
		$seen->{cut}++;
	}
	elsif ($kind eq 'chat')
	{
		$wrong = "an answer of $body" unless (eval { text_of({ json => $json->decode($body) }) } // '') =~ /\S/;
	}
	$wrong = sprintf 'after %.1f s', time - $start if !$wrong && !$streams && time - $start > $patience;
	$seen->{"wrong: $kind: $wrong"}++ if $wrong;
	$seen->{"$kind $status"}++;
	$seen->{'streams that outlived it'}++ if $kind eq 'long stream' && $status == 200 && $before != $self->turns;
	return $status;
}

# The kinds of calls that a client makes in turn.
my @mix = (
	['verify'], [qw(verify revoked unknown doomed)], [qw(chat verify)], [qw(stream chat)],
	map { ['long stream'] } 1 .. 3);

sub start
{
	my ($self) = @_;
	foreach my $kinds (@mix)
	{
		pipe my $reader, my $writer or die "pipe: $!";
		my $pid = fork // die "fork: $!";
		if ($pid == 0)
		{
			my $http = HTTP::Tiny->new(timeout => 60);
			my $end = time + 300;
			my %seen;
			eval {
				until (-e "$self->{file}-end" || time > $end)
				{
					foreach my $kind (@$kinds)
					{
						$self->call($http, $kind, \%seen);
						sleep 0.02;
					}
				}
				1;
			} or $seen{"wrong: died: $@"} = 1;
			print $writer $json->encode(\%seen);
			close $writer;
			POSIX::_exit(0);
		}
		push @{ $self->{readers} }, [ $pid, $reader ];
	}
	return;
}

# Runs code that breaks something and mends it; afterwards all kinds of calls succeed.
sub during
{
	my ($self, $what, $code) = @_;
	append_to_file($self->{file}, 'x');
	$code->();
	my $start = time;
	my $well = eval { $self->wait_until_well };
	ok($well, sprintf "$what: all is well again %.1f s after it was mended", time - $start) or diag($@);
	append_to_file($self->{file}, 'x');
	sleep 0.3;    # in which all must be well
	return;
}

sub wait_until_well
{
	my ($self) = @_;
	my %seen;
	my $http = HTTP::Tiny->new(timeout => 60);
	return wait_until('all to be well', sub {
		5 == grep { $self->call($http, $_, \%seen) == 200 } qw(verify chat stream verify chat)
	}, $recovery);
}

# Revokes the key that may pass until then.
sub revoke
{
	my ($self) = @_;
	$self->{site}->sql("SELECT regpilot.revoke_key('$self->{doomed_id}')");
	append_to_file("$self->{file}-doomed", '');
	return;
}

# Ends the clients; what they saw.
sub stop
{
	my ($self) = @_;
	my %sum;
	append_to_file("$self->{file}-end", '');
	foreach (@{ $self->{readers} })
	{
		my ($pid, $reader) = @$_;
		local $/;
		my $seen = $json->decode(<$reader> || '{"wrong: no result":1}');
		waitpid $pid, 0;
		$sum{$_} += $seen->{$_} foreach keys %$seen;
	}
	return \%sum;
}

# The same, and tests that there was nothing wrong; each of these was seen.
sub stop_and_check
{
	my ($self, $what, @expected) = @_;
	my $seen = $self->stop;
	is_deeply([ grep { /^wrong/ } sort keys %$seen ], [], "$what: each answer was one that it could be");
	ok($seen->{$_}, "$what: seen: $_") foreach @expected;
	note(join ', ', map { "$_: $seen->{$_}" } grep { !/^wrong/ } sort keys %$seen);
	return $seen;
}

1;
